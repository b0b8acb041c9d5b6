"""Mistral and checkpoints of the same maths, in flax.nnx. Names logical axes; knows nothing of meshes."""
