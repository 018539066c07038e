"""Who coordinates when coordinators may be lost, and how a quorum commits a round so that no two can."""
