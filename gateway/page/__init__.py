"""The web page: its files, as they lie in ``assets``, and what browsers are told of them. No HTTP framework here."""
