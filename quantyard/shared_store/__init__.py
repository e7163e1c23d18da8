"""Results that any number of machines share: a folder that all of them mount, or a bucket of an S3-compatible store.

    cas/<sha256>                        contents, each under its own digest
    kept/<sha256>                       when an old content was last put again
    ac/<key>                            the result of one stage, written last and only if absent: the first commit wins
    differing/<key>/<attempt>           second results with other bytes, kept aside
    attempts/<key>/<attempt>/…          what a running attempt says of itself, with its lease
    leases/<key>                        who works on a key; leases only save duplicate work
    specs/…                             what is to be run; the contents that they name are kept

`objects.py` is all that a kind of store must be able to do. Nothing here relies on locks, clocks of machines, or links.
"""
