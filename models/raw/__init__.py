"""RAW pictures: the sensor's Bayer mosaic, how it is read, packed for networks, rendered classically and made from photographs."""
