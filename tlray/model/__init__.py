"""The network and the bundle that keeps it: built, loaded, checked, made ready to answer.

`backbones`, `precision`, `weights`, `bundle`, `safety` and `card` load in milliseconds. `network`, `engine` and
`serving` import Keras or TensorFlow, so whoever needs those imports them inside a function.
"""
