"""The built-in example: from nothing to a trained video classifier in minutes, and what time inside the trunk is worth.

Clips of a drawn hand are written as video files; their classes are time-reversed pairs, so no model blind to the order
of frames can classify more than half of them correctly. A linear probe and ST-Adapter are trained with the same budget
on the trunk that comes with the package, and tested on clips drawn from other seeds.
"""
