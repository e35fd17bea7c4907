"""Imported last by the fork server, so that the memory it has by then stays shared with the processes that it forks.

Garbage collection writes to every object that it visits, which copies the object's memory page. It does not visit
frozen objects. Nothing else imports this module.
"""

import gc

gc.collect()
gc.freeze()
