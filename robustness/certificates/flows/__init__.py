"""What proofs about flows share: constants, margins, tubes around trajectories."""
