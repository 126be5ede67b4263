"""Tests of the room exchange; the live libraries of `make exchange-test` stand in live/."""
