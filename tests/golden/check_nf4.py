"""Compare nf4.npz with a second implementation, qwix: `python check_nf4.py` (environment `tunix` of benchmarks/setup_peers.sh).

qwix takes the nearest value by computed distances, so exact ties and blocks of tiny scales, which it treats as zeros, differ.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from qwix._src.core import numerics, qarray

numbers = np.load(Path(__file__).with_name("nf4.npz"))
np.testing.assert_array_equal(numerics.get_nf4_buckets(), numbers["table"])
for name, block_size in (("random", 64), ("large_blocks", 128)):
    method = qarray.HowToQuantize(
        qtype="nf4", tiled_axes={1: block_size}, channelwise_axes=[0], calibration_method="absmax"
    )
    quantized = qarray.quantize(jnp.asarray(numbers[f"{name}.weight"]), method)
    np.testing.assert_array_equal(np.asarray(quantized.qvalue, np.uint8), numbers[f"{name}.codes"])
    np.testing.assert_array_equal(quantized.scale, numbers[f"{name}.scales"])
    np.testing.assert_array_equal(qarray.dequantize(quantized), numbers[f"{name}.dense"])
    print(
        f"{name}: table, {quantized.qvalue.size:,} codes, {quantized.scale.size:,} scales and dense weights are equal"
    )
