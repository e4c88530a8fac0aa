"""What a run does at the same time as its steps. No other file decides this, so each of them can be turned off and measured.

Those that no GPU has measured yet are off. `UNVEIL_WAIT` in the environment names those to turn off instead, as in
`UNVEIL_WAIT=save,copy`; 1 means all of them, 0 none. `benchmarks/gpu.py` measures what each of them saves.

| name   | while a GPU computes a step                                                      | file           |
| ------ | -------------------------------------------------------------------------------- | -------------- |
| lag    | the host starts the next one, and learns afterwards whether this one was applied | recorder.py    |
| save   | a thread writes a checkpoint, from a copy in page-locked memory                  | snapshot.py    |
| copy   | a thread sends the next batches to the GPU, in a stream of their own             | data/loader.py |
| gather | FSDP2 gathers the weights of the next block                                      | wrapping.py    |
"""

from unveil.switches import Switches, names_in

NAMES = ("lag", "save", "copy", "gather")
UNMEASURED = ("save", "copy", "gather")

_switches = Switches(names_in("UNVEIL_WAIT", NAMES, unset=UNMEASURED))
enabled, turned_off = _switches.enabled, _switches.turned_off
