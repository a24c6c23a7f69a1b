"""A policy's proprioception out of sensor_msgs/JointState: which field is which joint's what, said once and checked.

left_finger=panda_finger_joint1.position           [m] or [rad]
right_finger=-panda_finger_joint2.position         with the other sign
left_finger_speed=panda_finger_joint1.velocity     [m/s] or [rad/s]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2robot.errors import InvalidInput, UnknownName

QUANTITIES = ("position", "velocity", "effort")


@dataclass(frozen=True)
class JointField:
    """One field of the proprioception: sign times a quantity of a joint."""

    field: str
    joint: str
    quantity: str
    sign: int


def parse_joints(words: Sequence[str], fields: Sequence[str]) -> tuple[JointField, ...]:
    """`["left_finger=panda_finger_joint1.position", ...]`, held against a policy's fields.

    Raises:
        UnknownName: a field or a quantity there is not.
        InvalidInput: another form, or a field given twice.
    """
    found: dict[str, JointField] = {}
    for word in words:
        field, equals, source = (part.strip() for part in word.partition("="))
        joint, dot, quantity = source.removeprefix("-").rpartition(".")
        if not (equals and dot and joint):
            raise InvalidInput(
                f"joints has {word!r}; expected field=joint.quantity: left_finger=finger_joint1.position"
            )
        if field not in fields:
            raise UnknownName("proprioception field", field, fields)
        if quantity not in QUANTITIES:
            raise UnknownName("quantity", quantity, QUANTITIES, "of a JointState")
        if field in found:
            raise InvalidInput(f"joints gives {field} twice: {found[field].joint} and {joint}")
        found[field] = JointField(field, joint, quantity, -1 if source.startswith("-") else 1)
    return tuple(found.values())


def joint_values(message: Any, wanted: Sequence[JointField]) -> dict[str, float]:
    """The wanted fields that this JointState has: arm and gripper may each send their own.

    Raises:
        InvalidInput: it has none of the joints, or not what was wanted of them, or a number that is not finite.
    """
    places = {name: k for k, name in enumerate(message.name)}
    here = [each for each in wanted if each.joint in places]
    if not here:
        joints = ", ".join(sorted({each.joint for each in wanted}))
        raise InvalidInput(f"JointState of {', '.join(message.name) or 'no joint'}; wanted: {joints}")
    found = {}
    for each in here:
        values = getattr(message, each.quantity)
        if len(values) != len(message.name):
            raise InvalidInput(
                f"JointState of {len(message.name)} joints with {len(values)} numbers of {each.quantity}; {each.field}"
                f" wants that of {each.joint}"
            )
        value = values[places[each.joint]]
        if not math.isfinite(value):
            raise InvalidInput(f"JointState says {each.quantity} {value} of {each.joint}")
        found[each.field] = each.sign * float(value)
    return found
