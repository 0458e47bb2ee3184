"""A hyperparameter wind tunnel for language-model training.

The floors, from the ground up (a floor imports only lower ones; `tests/test_floors.py` holds them to it):

    0 vocabulary    errors  schedule  space  study  run
    1 mathematics   transfer  laws
    2 instruments   families  train  data  table  forks  sampler  store
    3 product       plan  sweep  recommend  launch  export
    4 faces         cli  dashboard
"""

__version__ = "0.1.0"
