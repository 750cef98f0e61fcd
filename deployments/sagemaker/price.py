"""What an instance costs an hour, by AWS's own price list."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any


def per_hour(pricing: Any, instance_type: str, region: str) -> Decimal | None:
    """Return the price of an hour of an instance that serves, on demand, in US dollars; None where it is not known.

    The list may be closed to this user, may not have the instance, or may have two prices for it: a number that is not
    certain is none.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    filters = {"regionCode": region, "instanceName": instance_type, "productFamily": "ML Instance"}
    try:
        pages = pricing.get_paginator("get_products").paginate(
            ServiceCode="AmazonSageMaker",
            Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in filters.items()],
        )
        products = [json.loads(product) for page in pages for product in page["PriceList"]]
        prices = {price for product in products if _is_hosting(product) for price in _prices(product)}
    except (BotoCoreError, ClientError, ValueError, KeyError, AttributeError, InvalidOperation):
        return None
    return prices.pop() if len(prices) == 1 else None


def _is_hosting(product: dict) -> bool:
    attributes = product["product"]["attributes"]
    return "Hosting" in (attributes.get("platoinstancetype"), attributes.get("component"))


def _prices(product: dict) -> list[Decimal]:
    dimensions = [
        dimension
        for term in product["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension.get("unit") in ("Hrs", "Hours")
    ]
    prices = [Decimal(dimension["pricePerUnit"]["USD"]) for dimension in dimensions]
    return [price for price in prices if price > 0]  # free tiers are listed at 0
