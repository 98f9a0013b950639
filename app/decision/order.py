"""The orders in which a choice's options are shown. Averaging over orders takes out their bias."""

Order = tuple[int, ...]  # the options' indices as they are shown

MOST_ORDERS = 8


def orders(count: int, number: int) -> list[Order]:
    """Returns `number` orders of `count` options, each of them turned further than the one before.

    So each option is shown at different places, evenly spread over all of them. There are equal
    orders if there are more than options.
    """
    shifts = [index * max(count, number) // number % count for index in range(number)]
    return [(*range(shift, count), *range(shift)) for shift in shifts]
