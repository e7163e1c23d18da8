"""What runs on a node: `quantyard node run SPEC` takes the inputs by digest, runs the stage with an engine of this
machine, and commits the result to the shared store. Every batch engine calls just this.
"""
