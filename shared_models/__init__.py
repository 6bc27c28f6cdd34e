"""What the coordinator and every site hold the same copy of."""
