"""`make choose`: selects the best of the built and measured files for a memory size, a speed and a quality.

- `candidates`: the measured files: memory at the wanted context, quality, speed
- `pick`: the best within the limits, the runner-up, and the limits that a file misses
- `suggestions`: what helps where no file meets the limits
- `refusals`: the errors of a choice
"""
