"""Holds RTL against the model: every port of every cycle, every output, every cycle count."""

from hwsim.verify.verify import Divergence, Report, RtlRun, Simulator, run_rtl, verify

__all__ = ["Divergence", "Report", "RtlRun", "Simulator", "run_rtl", "verify"]
