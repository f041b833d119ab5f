"""The side towards stage servers: sockets, who is here, what is fetched from them and held for them."""
