"""Cases of the rules: for each operator, drawn models that the law is held to."""
