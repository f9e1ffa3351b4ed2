"""What happens to champions as events in Prefect, where automations can act on them. Nothing depends on it.

Events: r1flow.champion.promoted, .refused and .rolled-back, of the resource r1flow.model.NAME.
"""

from prefect.events import emit_event

from pipeline.promotion.ledger import Entry, Mark


def emit(entry: Entry) -> None:
    """Send the entry as an event; Prefect does that beside us and tries again by itself."""
    event = entry.event
    emit_event(
        event=f"r1flow.champion.{event.kind.replace(' ', '-')}",
        resource={"prefect.resource.id": f"r1flow.model.{event.model}", "prefect.resource.name": event.model},
        payload={
            "entry": entry.number,
            "who": event.who,
            "why": event.why,
            "from": _version(event.before),
            "to": _version(event.after),
        },
    )


def _version(mark: Mark | None) -> dict[str, int | str] | None:
    return None if mark is None else {"version": mark.version, "digest": mark.digest}
