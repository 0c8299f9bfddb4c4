"""Pure functions of tensors from which the operators are composed."""
