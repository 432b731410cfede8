"""What several ceremonies share, in the order in which it builds upon itself.

`backoff`, `protections` and `quorum` are rules without waiting; `record` is what every ceremony is, `ceremony` one that
asks people, `contribute` one in which offline keystores take part. `plan` makes every plan. `prove` and `notify` ask
keystore workers for signed words; `open` and `protect` are the two halves of `replace`, which a reshard and a recovery
are; `assess` and `propose` are a recovery's; `stoppable` is what a release hears of a stop by.
"""
