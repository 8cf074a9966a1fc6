"""Logweir: a multi-tenant log platform; one package, one entry point, one folder a role.

cli -> standalone -> roles -> runtime -> backends -> core
"""

__version__ = "0.1.0"
