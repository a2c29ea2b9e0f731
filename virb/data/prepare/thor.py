"""ViRB 2021's sets from AI2-THOR: zips of ``{train,val}/<scene>/*.jpg`` and ``{train,val}_labels.txt``, in a folder or not."""

from __future__ import annotations

from virb.data.prepare.recipes import Part, add, rules

_ALL = rules((r"(?:(?!(?:train|val)/)[^/]+/)*?((?:train|val)/.+|(?:train|val)_labels\.txt)", r"\1"))

add("thor-num-steps", "thor_num_steps", Part("all", ("thor_num_steps.zip",), _ALL))
add("thor-actions", "thor_action_prediction", Part("all", ("thor_egomotion.zip", "thor_action_prediction.zip"), _ALL))
