"""AliExpress Searching System: click, and conversion given a click."""
