"""Messages of inference.proto, in the private pool; their types stand in the generated .pyi beside this."""

from fitserve_oip.pool import symbols

globals().update(symbols("inference.proto"))
