"""The methods of weight sharing, one file each; see `secateur.quantize`."""
