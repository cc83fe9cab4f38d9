"""What a policy may say of its controller: one module of parameters each, and the union that a policy holds."""
