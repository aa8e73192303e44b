"""Engines: libraries that run a bundle's network, behind one interface.

`interface`: what an engine takes and gives; `openvino_engine`: on CPUs; `tensorflow_engine`: on GPUs, for networks that
OpenVINO cannot convert, and as the reference. `model.engine` chooses among them.
"""
