"""From raw values to ids and numbers: the hash, fitted encoders, NVTabular's operators, what every `prepare` shares."""
