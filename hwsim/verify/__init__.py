"""Holds RTL against the model: every port of every cycle, every output, every cycle count."""

from hwsim.verify.verify import Divergence, Report, Simulator, verify

__all__ = ["Divergence", "Report", "Simulator", "verify"]
