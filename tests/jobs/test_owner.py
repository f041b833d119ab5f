"""Which gateway was here before, and whether it is dead."""

from __future__ import annotations

from gateway.jobs.owner import Owner


def test_the_gateway_before_this_one_is_dead_once_its_process_is(tmp_path):
    with Owner(tmp_path) as first:
        assert first.dead is None
        first.introduce()
        with Owner(tmp_path) as beside:
            assert beside.dead is None, "it lives"
            beside.introduce()
    with Owner(tmp_path) as second:
        assert second.dead == first.name
        assert second.name not in (first.name, beside.name)
    with Owner(tmp_path) as third:
        assert third.dead == first.name, "the second died before it had taken over what the first left"


def test_without_a_folder_nothing_is_known():
    with Owner(None) as owner:
        owner.introduce()
        assert owner.dead is None
