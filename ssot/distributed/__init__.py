"""Problems whose rows are spread over the processes of a `torch.distributed` group."""

from ssot.distributed.kernel import ShardedKernel
from ssot.distributed.ranks import GroupRanks
from ssot.distributed.shard import shard_of

__all__ = ["GroupRanks", "ShardedKernel", "shard_of"]
