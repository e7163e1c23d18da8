"""`make choose`: which of the files that were built and measured fits this memory, speed and quality best.

- `candidates`: the measured files: memory at the wanted context, quality, speed
- `pick`: the best within the limits, the runner-up, and the limits that a file misses
- `suggestions`: what helps where no file meets the limits
- `refusals`: the errors of a choice
"""
