"""From a trained model to a release: exported files that are shown to be the same model, with a card and checksums."""
