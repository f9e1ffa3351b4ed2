"""What happens to champions as events in Prefect."""

import pytest
from prefect.events import Event as PrefectEvent

import flows.promotion
from pipeline.promotion.ledger import Entry, Event, Mark


def test_an_entry_is_an_event_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[PrefectEvent] = []
    monkeypatch.setattr(flows.promotion, "emit_event", lambda **fields: sent.append(PrefectEvent(**fields)))
    event = Event("x", "ada", "rolled back", "r1flow-m", Mark(2, "b"), Mark(1, "a"), "slow", tried=True)
    flows.promotion.emit(Entry(7, "2026-11-24T22:00:00+00:00", event, "", ""))
    assert sent[0].event == "r1flow.champion.rolled-back"
    assert sent[0].resource.id == "r1flow.model.r1flow-m"
    assert sent[0].payload == {
        "entry": 7,
        "who": "ada",
        "why": "slow",
        "from": {"version": 2, "digest": "b"},
        "to": {"version": 1, "digest": "a"},
    }
