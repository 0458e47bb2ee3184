"""A hyperparameter wind tunnel for language-model training.

The floors, from the ground up (a floor imports only lower ones; `tests/test_floors.py` holds them to it):

    0 vocabulary    errors  schedule  space  study  run
    1 mathematics   transfer  valley  laws
    2 instruments   families  train  data  table  forks  tuned  sampler  store
    3 product       plan  backends  on_ray  sweep  ladder  forecasts  recommend  launch  export  pipeline  doctor
    4 faces         show  cli  dashboard
"""

__version__ = "0.1.0"
