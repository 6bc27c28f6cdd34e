"""How names and numbers are written for people."""

from shared_models.page import natural


def test_names_with_numbers_stand_in_the_order_of_their_numbers():
    names = ["site10", "hospital-10", "hospital-2", "7th", "hospital-2b", "all", "hospital-02", ""]
    ordered = ["", "7th", "all", "hospital-02", "hospital-2", "hospital-2b", "hospital-10", "site10"]
    assert sorted(names, key=natural) == sorted(reversed(names), key=natural) == ordered
