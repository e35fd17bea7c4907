"""Models and the processes that hold them.

Loading at a pinned revision, adapters and what lies under them, the pair of a tuned model and its base and whether the
two can be compared, the memory a run takes, and what the processes of one run agree on.
"""

from .hub_code import import_without_hub_code

import_without_hub_code()  # before any module of this package, or of those below it, imports PEFT
