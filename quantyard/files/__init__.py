"""Files read and moved without following what others put in their way."""
