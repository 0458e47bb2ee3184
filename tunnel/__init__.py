"""A hyperparameter wind tunnel for language-model training.

The floors, from the ground up (a floor imports only lower ones; `tests/test_floors.py` holds them to it):

    0 vocabulary    errors  schedule  space  study/  run
    1 mathematics   transfer  quantiles  fitting/  laws/  backtests/  valleys/
    2 instruments   families/  training/  folder/  table/  tuned  sampler  mirror  proposals  pareto
    3 product       plan/  sweeps/  doctor
    3 answers       verdicts/  answers/  export/
    4 faces         show/  cli/  dashboard/
"""

__version__ = "0.6.0"
