"""The leaders of several hosts speak with each other, before and while their workers move bytes.

One process a host, `eplb reshard --nnodes N --node-rank K`, is its leader. What leaders say goes over a
board: a few keys with bytes under them, which a store of host 0 keeps (`tcp_board`) or a directory that all
of them see (`file_board`). Whoever reaches the board can speak on it, as with torchrun and NCCL: the network,
and the directory, have to be those of people who trust each other. Nothing that is said is unpickled or run,
all of it has limits, and nothing listens but on the address that the user gave.
"""

# hosts       what the flow of a run sees: gather, union, check, fail; ALONE for one host
# joining     all hosts are there, of one version, with the same inputs, or all of them say what is wrong
# hello       what a host says of itself, and how two of them differ
# watch       who was not heard from; who has failed first
# failure     an error, told to the others
# words       JSON of a limited size
# sparse      arrays of which most rows are zero, for `union`
# board       what a board is
# bounded     no call to a board waits for ever
# tcp_board   a board over torch's TCPStore
# file_board  a board in a directory of shared storage
# addresses   HOST:PORT, which address of ours leads there, and on which interface
