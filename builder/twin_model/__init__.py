"""The parts of the stage `twin`: the small copy of a model, its two answers, and what tells them apart."""
