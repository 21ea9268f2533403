"""The one room in which private names of torch occur; `tests/torch_internals` says what each must do.

It is the first thing that is imported of tpfx: a release of torch that nobody has tried may lack such a name.
"""

from ..version import warn_of_untried

warn_of_untried()
