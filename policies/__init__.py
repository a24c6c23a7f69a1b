"""Policies: one algorithm a file. `s2robot.registry.POLICIES` names them."""
