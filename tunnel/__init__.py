"""A hyperparameter wind tunnel for language-model training.

The floors, from the ground up (a floor imports only lower ones; `tests/test_floors.py` holds them to it):

    0 vocabulary    errors  schedule  space  study  run
    1 mathematics   transfer  valley  laws  halving  fans  stability  drift  joint  regret
    2 instruments   families  train  pack  data  table  forks  tuned  sampler  store  files  lock  cells  coordinates
    3 product       plan  slices  status  hands  backends  on_ray  sweep  launch  rerun  extend  prune  pipeline  doctor
    3 answers       horizon  ladder  verdict  carry  cautions  forecasts  recommend  export
    4 faces         show  cli  dashboard
"""

__version__ = "0.2.0"
