"""VoltanaLLM (arXiv 2509.04827): EcoPred and EcoFreq; EcoRoute is `flyball_agent.routing.ecoroute`."""
