"""Models, and the processes that run them.

Loading at a pinned revision; adapters and the models under them; pairs of a tuned model and its base, and whether they
can be compared; the memory that a run needs; and what the processes of one run agree on.
"""

from .hub_code import import_without_hub_code

import_without_hub_code()  # must run before any module of this package, or of a package below it, imports PEFT
