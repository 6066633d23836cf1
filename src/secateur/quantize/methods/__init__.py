"""The methods of sharing, one file each; see `secateur.quantize`."""
