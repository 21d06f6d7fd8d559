"""The KV cache: policies, the plan of slots and positions, and the tensors."""
