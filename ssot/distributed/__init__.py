"""Problems whose rows are spread over the processes of a `torch.distributed` group."""

from ssot.distributed.ranks import GroupRanks

__all__ = ["GroupRanks"]
